"""The models of the tasks, each built from the cells and layers of the library."""
