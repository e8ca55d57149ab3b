"""What served lists teach: which event followed from which list, samples for the ranker, and experiments.

attribution.py  lists and events -> which product of which list was chosen
samples.py      these -> the dataset `exposures`, and from there to requests of the ranker's training
report.py       lists and events of an experiment -> rates by arm, with intervals, and whether the split is right
"""
