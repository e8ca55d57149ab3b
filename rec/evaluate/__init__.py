"""Leave-one-out evaluation: ranks of held-out events, figures with intervals, controls, slices, the report."""
