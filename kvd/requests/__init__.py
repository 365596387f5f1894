"""One request, one reply: what each request is, who may ask for it, what it may cost, and what runs it."""
