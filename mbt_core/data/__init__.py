"""From a manifest to batches: manifest, windows, dataset, collate, samplers, loader, cache, check."""
