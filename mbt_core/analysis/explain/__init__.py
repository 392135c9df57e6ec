"""What a prediction rests on: attention led back to the inputs, pictures of it, and a page that shows them."""
