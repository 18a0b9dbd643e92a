/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Connections over IPv4, also those of IPv6 sockets that name the address as ::ffff:10.96.0.1.
 *
 * connect: the address of a Service becomes that of an endpoint, and the socket keeps what it was.
 * getpeername: it is shown again.
 * sendmsg, recvmsg: the same for datagrams whose address is given with each. A socket sends what is for one Service to one
 * endpoint.
 */
#include "balance.h"

extern const struct map frontends4, slots4, endpoints4, node_addresses4, original4, datagrams4, counters4, meta4;

#define LOOPBACK4 0x0100007f

ALWAYS_INLINE u32 check_of(u32 address, u16 port)
{
	return address ^ (port * CHECK_FACTOR);
}

/* A frontend at the address, or else, with address 0, one of the node's ports. */
ALWAYS_INLINE int find(u32 address, u16 port, u8 protocol, int host, struct frontend *copy)
{
	struct key4 key = { .address = address, .port = port, .protocol = protocol };
	struct frontend *frontend = map_lookup(&frontends4, &key);
	u32 *node;

	if (frontend)
		return read_frontend(frontend, check_of(address, port), copy);
	key.address = 0;
	frontend = map_lookup(&frontends4, &key);
	if (!frontend || !read_frontend(frontend, check_of(0, port), copy))
		return 0;
	node = map_lookup(&node_addresses4, &address);
	return node && (host || !(*node & NODE_ADDRESS_HOST_ONLY));
}

/* Keeps in the socket where it wanted to go. False: there is no memory for it. */
ALWAYS_INLINE int keep(struct socket_address *ctx, const struct original4 *original)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, STORAGE_CREATE) : NULL;

	if (!kept)
		return 0;
	*kept = *original;
	return 1;
}

/* The frontend that serves the address for this socket. */
ALWAYS_INLINE int find_for(struct socket_address *ctx, const struct meta *meta, u32 address, u16 port, u8 protocol,
			   struct frontend *frontend)
{
	int host;

	if (!meta->on)
		return 0;
	host = is_host(ctx, meta);
	return find(address, port, protocol, host, frontend) && (host || !(frontend->flags & FRONTEND_HOST_ONLY));
}

/* Where an endpoint is, unless its place was given to another one meanwhile. */
ALWAYS_INLINE int read_endpoint(u32 id, u16 epoch, struct endpoint4 *endpoint)
{
	volatile u64 *place = map_lookup(&endpoints4, &id);

	if (!place)
		return 0;
	*(u64 *)endpoint = *place;
	return endpoint->epoch == epoch;
}

/* Chooses an endpoint and keeps the original in the socket. False: the address stays. */
ALWAYS_INLINE int translate(struct socket_address *ctx, struct original4 *original)
{
	struct meta *meta = switched_on(&meta4);
	struct endpoint4 endpoint;
	struct frontend frontend;
	u64 slot;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		original->endpoint = LOOPBACK4;
		original->endpoint_port = (u16)meta->canary_port;
		return keep(ctx, original);
	}
	if (!find_for(ctx, meta, original->address, original->port, (u8)ctx->protocol, &frontend))
		return 0;
	slot = choose_slot(&slots4, &frontend, random_u32());
	if (slot == NO_SLOT || !read_endpoint(SLOT_ENDPOINT(slot), SLOT_ENDPOINT_EPOCH(slot), &endpoint))
		return 0;
	original->endpoint = endpoint.address;
	original->endpoint_port = endpoint.port;
	if (!keep(ctx, original))
		return 0;
	count(&counters4, SLOT_ENDPOINT(slot));
	return 1;
}

/* What an earlier connect of this socket kept is no longer true. */
ALWAYS_INLINE void forget(struct socket_address *ctx)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, 0) : NULL;

	if (kept)
		kept->endpoint_port = 0;
}

/* Where the socket wanted to connect to, if this is where it is connected. */
ALWAYS_INLINE int find_original(struct socket_address *ctx, u32 *address, u16 *port)
{
	struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, 0) : NULL;

	if (!kept || !kept->endpoint_port || kept->endpoint != *address || kept->endpoint_port != *port)
		return 0;
	*address = kept->address;
	*port = kept->port;
	return 1;
}

ALWAYS_INLINE int has_address(const struct datagram4 *place, const u32 *address, u16 port)
{
	return place->address == *address && place->port == port;
}

ALWAYS_INLINE int has_endpoint(const struct datagram4 *place, const u32 *address, u16 port)
{
	return place->endpoint == *address && place->endpoint_port == port;
}

#define ADDRESS u32
#define DATAGRAM datagram4
#define DATAGRAMS datagrams4
#define DATAGRAMS_OF_SOCKETS datagrams4
#include "datagrams.h"

/* Where a datagram goes. False: the address stays. */
ALWAYS_INLINE int route(struct socket_address *ctx, struct datagram4 *datagram)
{
	struct meta *meta = switched_on(&meta4);
	struct endpoint4 endpoint;
	struct frontend frontend;
	u64 slot;

	if (!meta)
		return 0;
	if (is_canary(ctx, meta)) {
		datagram->endpoint = LOOPBACK4;
		datagram->endpoint_port = (u16)meta->canary_port;
		return remember(ctx, datagram);
	}
	if (!find_for(ctx, meta, datagram->address, datagram->port, UDP, &frontend))
		return 0;
	if (recall(ctx, datagram) && datagram->pool == frontend.pool &&
	    read_endpoint(datagram->number, datagram->epoch, &endpoint) &&
	    endpoint.address == datagram->endpoint && endpoint.port == datagram->endpoint_port)
		return 1;
	slot = choose_slot(&slots4, &frontend, number_of(ctx, check_of(datagram->address, datagram->port)));
	if (slot == NO_SLOT || !read_endpoint(SLOT_ENDPOINT(slot), SLOT_ENDPOINT_EPOCH(slot), &endpoint))
		return 0;
	datagram->endpoint = endpoint.address;
	datagram->endpoint_port = endpoint.port;
	datagram->number = SLOT_ENDPOINT(slot);
	datagram->pool = frontend.pool;
	datagram->epoch = endpoint.epoch;
	if (!remember(ctx, datagram))
		return 0;
	count(&counters4, datagram->number);
	return 1;
}

/*
 * A socket that has a peer hears of that alone, so what it sends goes there or is left to the rules. Those of IPv6 come here with
 * each datagram to an address of IPv4, also if it is not given with it.
 */
ALWAYS_INLINE void send_to_peer(struct socket_address *ctx)
{
	const struct original4 *kept = ctx->sk ? storage_get(&original4, ctx->sk, NULL, 0) : NULL;

	if (!kept || !kept->endpoint_port || kept->address != ctx->user_ip4 || kept->port != (u16)ctx->user_port)
		return;
	ctx->user_ip4 = kept->endpoint;
	ctx->user_port = kept->endpoint_port;
}

/* The address that is shown as sender of what arrives. */
ALWAYS_INLINE int find_shown(struct socket_address *ctx, u32 *address, u16 *port)
{
	return is_connected(ctx) ? find_original(ctx, address, port) : find_sender(ctx, address, port);
}

SECTION("connect4")
int kp_connect4(struct socket_address *ctx)
{
	struct original4 original = { .address = ctx->user_ip4, .port = (u16)ctx->user_port };

	if (ctx->protocol != TCP && ctx->protocol != UDP)
		return PASS;
	if (translate(ctx, &original)) {
		ctx->user_ip4 = original.endpoint;
		ctx->user_port = original.endpoint_port;
	} else {
		forget(ctx);
	}
	return PASS;
}

SECTION("connect6")
int kp_connect4in6(struct socket_address *ctx)
{
	struct original4 original = { .address = ctx->user_ip6[3], .port = (u16)ctx->user_port };

	if (ctx->protocol != TCP && ctx->protocol != UDP)
		return PASS;
	if (is_mapped(ctx) && translate(ctx, &original)) {
		ctx->user_ip6[3] = original.endpoint;
		ctx->user_port = original.endpoint_port;
	} else {
		forget(ctx);
	}
	return PASS;
}

SECTION("getpeername4")
int kp_peername4(struct socket_address *ctx)
{
	u32 address = ctx->user_ip4;
	u16 port = (u16)ctx->user_port;

	if (find_original(ctx, &address, &port)) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return PASS;
}

SECTION("getpeername6")
int kp_peername4in6(struct socket_address *ctx)
{
	u32 address = ctx->user_ip6[3];
	u16 port = (u16)ctx->user_port;

	if (!is_mapped(ctx))
		return PASS;
	if (find_original(ctx, &address, &port)) {
		ctx->user_ip6[3] = address;
		ctx->user_port = port;
	}
	return PASS;
}

/* Also for what IPv6 sockets send to addresses of IPv4. */
SECTION("sendmsg4")
int kp_sendmsg4(struct socket_address *ctx)
{
	struct datagram4 datagram = { .address = ctx->user_ip4, .port = (u16)ctx->user_port };

	if (ctx->protocol != UDP)
		return PASS;
	if (is_connected(ctx)) {
		send_to_peer(ctx);
		return PASS;
	}
	if (route(ctx, &datagram)) {
		ctx->user_ip4 = datagram.endpoint;
		ctx->user_port = datagram.endpoint_port;
	} else {
		u32 named = ctx->user_ip4;

		named_directly(ctx, &named, (u16)ctx->user_port);
	}
	return PASS;
}

SECTION("recvmsg4")
int kp_recvmsg4(struct socket_address *ctx)
{
	u32 address = ctx->user_ip4;
	u16 port = (u16)ctx->user_port;

	if (find_shown(ctx, &address, &port)) {
		ctx->user_ip4 = address;
		ctx->user_port = port;
	}
	return PASS;
}

SECTION("recvmsg6")
int kp_recvmsg4in6(struct socket_address *ctx)
{
	u32 address = ctx->user_ip6[3];
	u16 port = (u16)ctx->user_port;

	if (!is_mapped(ctx))
		return PASS;
	if (find_shown(ctx, &address, &port)) {
		ctx->user_ip6[3] = address;
		ctx->user_port = port;
	}
	return PASS;
}

/* Tells the agent of the sockets of UDP of a network namespace that were sent to an endpoint when they connected. */
SECTION("iter")
int kp_kept4(struct each_socket *ctx)
{
	/* Read once: the verifier of Linux 6.1 does not see that it is the same, and not NULL, when it is read again. */
	struct socket *sk = ctx->sk;
	const struct original4 *kept = sk ? storage_get(&original4, sk, NULL, 0) : NULL;
	struct told4 told;

	if (!kept || !kept->endpoint_port)
		return 0;
	told.cookie = cookie_of(sk);
	told.original = *kept;
	write_out(ctx->iteration->out, &told, sizeof(told));
	return 0;
}

SECTION("license") const char terms[] = "Dual MIT/GPL";
