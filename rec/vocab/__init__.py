"""Vocabularies: STD is fixed and shipped, RE grows; tensorization turns attributes into ids."""
