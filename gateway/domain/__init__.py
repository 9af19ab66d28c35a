"""Values, limits, policies and errors. Pure: standard library and numpy only."""
