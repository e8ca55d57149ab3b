"""Storefront recommender: LLM attributes, two towers, pgvector retrieval, DeepFM reranking."""

__version__ = "0.1.0"
