"""Where users submit: translation, the schedd's queue, what it says of jobs."""
