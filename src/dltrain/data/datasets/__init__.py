"""The options of the group `data`: one file and one function each."""
