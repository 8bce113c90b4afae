"""The study of STUDY.md: which runs its protocol asks for, what is measured of each, and one file per question."""
