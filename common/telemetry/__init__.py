"""Telemetry: metrics and traces over OpenTelemetry, when `[telemetry]` asks for them.

A process starts it with ``started`` and hands ``Telemetry`` to its parts. Off, which is the default, that is ``QUIET``:
nothing of OpenTelemetry is imported, and no message differs by a byte. What is told: ``common.telemetry.names``.
"""
