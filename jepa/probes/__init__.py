"""Pure functions from frozen features to scores."""
