from small_fixtures import demo, run

__all__ = ["demo", "run"]
