"""Enrichment: what a language model reads out of product text, cached, validated and grounded."""
