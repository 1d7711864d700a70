"""The asset graph, a module per group, named as the group is."""
