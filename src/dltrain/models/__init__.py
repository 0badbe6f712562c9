"""The built-in networks, one self-contained file each: to add one, copy a file and its YAML and change them."""
