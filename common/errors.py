"""The errors a user or a supervisor can meet, each with the exit code its process ends with."""


class SparkError(Exception):
    """Base of every error raised on purpose. Its text says what, which value, and what to do."""

    exit_code = 1


class SettingsError(SparkError):
    """The settings, the prompts or the model do not make sense; nothing was started."""

    exit_code = 2


class ServerError(SparkError):
    """The Redis-protocol server cannot be reached or is unfit (eviction on, too old)."""

    exit_code = 3


class ServerFull(ServerError):
    """The server takes no new entries: its memory limit is reached or its disk is full. Producers pause and try again;
    consuming, renewing and acknowledging go on, which is what makes room."""


class Fenced(SparkError):
    """A newer learner epoch exists: this learner must stop and change nothing more."""

    exit_code = 42


class InvalidMessage(SparkError):
    """A stream entry breaks the schema or its limits. The entry goes to the dead letters."""


class TaskError(SparkError):
    """This task can never succeed here (for example its prompt is too long). Retrying is useless."""


class WeightsError(SparkError):
    """Published weights are missing, torn or altered. The actor keeps the version it has and retries."""
