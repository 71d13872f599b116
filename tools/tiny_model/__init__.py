"""How the embedded tiny model is made: questions, tokenizer, supervised training, measurement."""
