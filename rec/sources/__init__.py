"""Sources of candidates beside the user vector's search, made once of training events and looked up per request.

neighbours.py     items × most similar items, as a table
cells.py          how the most similar ones are found in a large catalogue
cooccurrence.py   items that the same users had, counted and normalised
segments.py       popular items by profile segment
tables.py         the three together: what they propose for a user, and their artifact
build.py          the stage that makes them
"""
