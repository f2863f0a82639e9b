"""The models of the tasks, built from the cells and layers of the library."""
