"""Classification networks whose last features the heads read."""
