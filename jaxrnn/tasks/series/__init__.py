"""The task ``series``: forecasts and labels of series of numbers."""
