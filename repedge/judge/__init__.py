"""Is an artifact right? Verification, evaluation, comparison."""
