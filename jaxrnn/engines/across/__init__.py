"""The engine that splits time over devices."""
