"""The options of the group `data`: one file with one function each."""
