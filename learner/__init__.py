"""The learner: issues prompts, takes fresh scored groups, makes one joint update, publishes weights."""
