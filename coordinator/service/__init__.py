"""The gRPC services: validate, hand to the verbs (enrol, members, feed), answer. No decision is made here."""
