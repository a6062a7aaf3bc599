"""One run from data to metrics: settings, recipes, stages, the stage cache, and what executes an order."""
