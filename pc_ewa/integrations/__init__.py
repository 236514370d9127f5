"""EWA in the trainers of others: `lightning`, `transformers` and `accelerate`, each module by the name of its package."""
