"""D3G: domain relations for domain generalisation."""
