"""Any checkpoint of a run as one Hugging Face folder."""
