"""The request path as plain classes: everything that the Serve deployments do, callable without Ray.

request.py   what is asked and what is answered
resolve.py   a request and what is known of the shopper -> user state
shelf.py     the bundle's products by id, as they are shown
encode.py    user state -> user vector, and what each input contributed
retrieve.py  user vector -> candidates, from pgvector and from what is popular
score.py     candidates -> ranked list
rules.py     what a merchandiser may say of lists, and which rule is the stronger
facets.py    the values that rules can name
arrange.py   pins, caps, buried products and diversity, as numbers
ruling.py    rules of one bundle: ranked candidates -> the list
rulebook.py  the rules that the database has
preview.py   lists before and after rules that are not in force yet
passage.py   what a request became at each stage, and where a product was lost
standby.py   candidates without Postgres: exact search over the bundle
why.py       reason codes, matched attributes and the product that caused each item
front.py     what stands before and after the stages
walk.py      the way of a request through all of them, whoever runs them
chain.py     all of them in one process
"""
