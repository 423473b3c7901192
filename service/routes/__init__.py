"""The routes, by the kind of work that they do. A mistake says so in its name, summary and tag."""

MISTAKE = "mistake"
