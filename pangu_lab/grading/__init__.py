"""From solutions to marks: the notebooks' format, the release for students, and grading."""
