"""The request path as plain classes: everything that the Serve deployments do, callable without Ray.

request.py   what is asked and what is answered
shelf.py     the bundle's products by id, as they are shown
encode.py    user state -> user vector, and what each input contributed
retrieve.py  user vector -> candidates, from pgvector and from what is popular
score.py     candidates -> ranked list
why.py       reason codes, matched attributes and the product that caused each item
chain.py     all of them in one process
"""
