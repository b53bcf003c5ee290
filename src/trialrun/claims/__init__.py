"""How a claim is run, judged and recorded."""
