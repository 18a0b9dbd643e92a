/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What a socket keeps of where its datagrams go. For the family that includes it, which has said before what these are: ADDRESS, the
 * structs DATAGRAM and DATAGRAMS, the map DATAGRAMS_OF_SOCKETS, and has_address and has_endpoint, whether that is where a place's
 * datagrams are sent, and where they go.
 */
ALWAYS_INLINE struct DATAGRAMS *datagrams_of(struct socket_address *ctx, u64 flags)
{
	return ctx->sk ? storage_get(&DATAGRAMS_OF_SOCKETS, ctx->sk, NULL, flags) : NULL;
}

/* Whether datagrams to this address go to an endpoint already; fills in to which one. */
ALWAYS_INLINE int recall(struct socket_address *ctx, struct DATAGRAM *datagram)
{
	struct DATAGRAMS *kept = datagrams_of(ctx, 0);
	int n, found = 0;

	if (!kept)
		return 0;
	lock(&kept->lock);
#pragma unroll
	for (n = 0; n < DATAGRAM_PLACES; n++) {
		const struct DATAGRAM *place = &kept->places[n];

		if (!found && place->endpoint_port && has_address(place, &datagram->address, datagram->port)) {
			*datagram = *place;
			found = 1;
		}
	}
	unlock(&kept->lock);
	return found;
}

/*
 * Keeps in the socket where datagrams to this address go. False: they go to too many, or the endpoint has those of another Service,
 * and nobody could tell whose its answers are.
 */
ALWAYS_INLINE int remember(struct socket_address *ctx, const struct DATAGRAM *datagram)
{
	struct DATAGRAMS *kept = datagrams_of(ctx, STORAGE_CREATE);
	struct DATAGRAM *own = NULL;
	int n, is_ambiguous = 0;

	if (!kept)
		return 0;
	lock(&kept->lock);
#pragma unroll
	for (n = DATAGRAM_PLACES - 1; n >= 0; n--) {
		struct DATAGRAM *place = &kept->places[n];

		if (!place->endpoint_port)
			own = own ? own : place;
		else if (has_address(place, &datagram->address, datagram->port))
			own = place;
		else if (has_endpoint(place, &datagram->endpoint, datagram->endpoint_port))
			is_ambiguous = 1;
	}
	if (own && !is_ambiguous)
		*own = *datagram;
	unlock(&kept->lock);
	return own && !is_ambiguous;
}

/* Whoever names an endpoint itself wants to see its own answers. */
ALWAYS_INLINE void named_directly(struct socket_address *ctx, const ADDRESS *address, u16 port)
{
	struct DATAGRAMS *kept = datagrams_of(ctx, 0);
	int n;

	if (!kept)
		return;
	lock(&kept->lock);
#pragma unroll
	for (n = 0; n < DATAGRAM_PLACES; n++) {
		struct DATAGRAM *place = &kept->places[n];

		if (has_endpoint(place, address, port))
			place->endpoint_port = 0;
	}
	unlock(&kept->lock);
}

/* The address that the socket has sent to, if answers from this one are for that. */
ALWAYS_INLINE int find_sender(struct socket_address *ctx, ADDRESS *address, u16 *port)
{
	struct DATAGRAMS *kept = datagrams_of(ctx, 0);
	int n, found = 0;

	if (!kept)
		return 0;
	lock(&kept->lock);
#pragma unroll
	for (n = 0; n < DATAGRAM_PLACES; n++) {
		const struct DATAGRAM *place = &kept->places[n];

		if (!found && has_endpoint(place, address, *port)) {
			*address = place->address;
			*port = place->port;
			found = 1;
		}
	}
	unlock(&kept->lock);
	return found;
}
