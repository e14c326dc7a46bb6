"""Networks that benches are run on."""
