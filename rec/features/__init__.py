"""Features of the ranker: one list of fields, one set of item tables, one function that computes them.

spec.py        every field by name, and the tables that the id fields look up
items.py       what is known of each item, one row per product
popularity.py  events per item before a moment of the past
compute.py     (user, candidates, time) -> ids and numbers; training, evaluation and serving call the same code
requests.py    the features of all training requests, on disk
transfer.py    start values of the attribute tables, from the item tower
"""
