"""Built-in networks, one self-contained file each: copy one, change it, add its YAML."""
