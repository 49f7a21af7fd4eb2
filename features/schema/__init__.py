"""Schemas: a YAML file for each dataset describes the columns of its log and their features.

`schema` is the model of that file, `transforms` has the rules that make features from columns, and
`check_params` compares the parameters with a schema.
"""
