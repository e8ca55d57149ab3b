#!/usr/bin/env python
"""Bundle a recipe's finished stages, load the vectors into Postgres, and promote the bundle.

python jobs/publish.py --recipe demo
python jobs/publish.py --recipe demo --force       # promote although evaluation or index are below the recipe's floors

What is done with bundles afterwards is in jobs/bundles.py.
"""

from rec import publish
from rec.cli import main, parser

if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--force", action="store_true", help="promote a bundle that is below a floor of the recipe")
    main(lambda config, options: publish.run(config, force=options.force), arguments, writes=True)
