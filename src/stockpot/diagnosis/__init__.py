"""The study of a soup: `stockpot.diagnose`, its result, and what follows from it."""
