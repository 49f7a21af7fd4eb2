"""The parameters of params.yaml: their names, types, ranges and meanings, and the reader of YAML.

`params.py` lists the parameters, `model.py` those of the section `model`, and `loading.py` reads
YAML files and names the faults in them.
"""
