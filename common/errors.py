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


class ServerAway(ServerError):
    """No server answers just now. One that is being restarted will."""


class ServerFull(ServerError):
    """The server takes no new entries: its memory limit is reached or its disk is full. Producers pause and try again;
    consuming, renewing and acknowledging go on, which is what makes room."""


class WipedServer(ServerError):
    """The server does not hold the data of this run (any more). Going on needs a decision of the user."""

    exit_code = 4


class Fenced(SparkError):
    """A newer learner epoch exists: this learner must stop and change nothing more."""

    exit_code = 42


class TooManyDead(SparkError):
    """So many tasks ended in the dead letters that going on would only waste prompts."""

    exit_code = 5


class InvalidMessage(SparkError):
    """A stream entry breaks the schema or its limits. The entry goes to the dead letters."""


class TaskError(SparkError):
    """This task can never succeed here (for example its prompt is too long). Retrying is useless."""


class WeightsError(SparkError):
    """Published weights are missing, torn or altered. The actor keeps the version it has and retries."""
