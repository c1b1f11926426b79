#!lua name=spark

-- Every change of a stream that must happen once is one call here. The acknowledgement is the commit
-- marker: XACK answers 1 to exactly one caller, and only that caller's effects are applied. A retry, a
-- second claimer or a process that was paused and resumed gets 0 and changes nothing.
-- Callers pass at most 200 entries a call. A call is checked before it changes anything: it applies whole or not at all.

-- XINFO answers a flat list of names and values.
local function named(info)
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  return fields
end

-- The error for a stream position that is none, found before anything is changed.
local function bad_id(id)
  if string.match(id, '^%d+%-%d+$') then return nil end
  return redis.error_reply('ERR ' .. id .. ' is no stream id')
end

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function less(a, b)
  local a_ms, a_seq = parse(a)
  local b_ms, b_seq = parse(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

local function successor(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

-- XINFO without the "no such key" error: a lost stream is reported as its lost group, which callers know to mend.
local function groups_of(stream)
  if redis.call('EXISTS', stream) == 0 then return {} end
  local groups = redis.call('XINFO', 'GROUPS', stream)
  for i = 1, #groups do groups[i] = named(groups[i]) end
  return groups
end

local function no_group(stream)
  return redis.error_reply('NOGROUP a consumer group of ' .. stream .. ' is missing')
end

local function event(key, kind, fields)
  redis.call('XADD', key, '*', 'event', kind, unpack(fields))
end

-- keys: fence    args: epoch, token ("epoch:nonce")
-- 1 when this token now holds the fence, 0 when a higher epoch does, or another token of the same epoch: two
-- learners whose checkpoint stores do not know each other.
local function take_fence(keys, args)
  local held = redis.call('GET', keys[1])
  if held and held ~= args[2] and tonumber(string.match(held, '^(%d+):')) >= tonumber(args[1]) then return 0 end
  redis.call('SET', keys[1], args[2])
  return 1
end

-- keys: fence, generation, (rebuilt, returned)?    args: token, name, (number parked)?
-- The name of this data set: the first one given, until the data are lost. Nil when the fence is not held. Empty when the
-- data should have been rebuilt, and are not all there.
local function begin(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return false end
  if args[3] and redis.call('EXISTS', keys[2]) == 0 then
    if redis.call('GET', keys[3]) ~= args[1] or redis.call('XLEN', keys[4]) ~= tonumber(args[3]) then return '' end
  end
  redis.call('SETNX', keys[2], args[2])
  return redis.call('GET', keys[2])
end

-- keys: fence, cursor, ledger, events, rebuilt, others*    args: token, next cursor, (field of the ledger, count)*
-- Start again from what a checkpoint knows: everything the server held of the run is deleted. Returns whether the fence
-- was held. What is to be sampled again is added with `park`; `begin` then says that all of it is there.
local function rebuild(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return 0 end
  for i = 2, #keys do redis.call('DEL', keys[i]) end
  redis.call('SET', keys[2], args[2])
  redis.call('SET', keys[5], args[1])
  local counts = {}
  for i = 3, #args, 2 do
    redis.call('HSET', keys[3], args[i], args[i + 1])
    counts[#counts + 1] = args[i] .. '=' .. args[i + 1]
  end
  event(keys[4], 'rebuilt', {'counts', table.concat(counts, ' ')})
  return 1
end

-- keys: fence, returned, rebuilt    args: token, entries that the stream must have, (uid, payload)*
-- Issued tasks of a rebuilt run, to be issued again. Compare-and-set: a repeat finds its own entries and adds nothing.
-- Returns 0 when the fence is not held, -1 when the server lost what was rebuilt before.
local function park(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return 0 end
  if redis.call('GET', keys[3]) ~= args[1] then return -1 end
  local before, length = tonumber(args[2]), redis.call('XLEN', keys[2])
  if length == before + (#args - 2) / 2 then return 1 end
  if length ~= before then return -1 end
  for i = 3, #args, 2 do redis.call('XADD', keys[2], '*', 'uid', args[i], 'm', args[i + 1]) end
  return 1
end

-- keys: stream    args: id
-- New entries get later ids than this one. A server that lost its last entries, and whose clock was set back, would
-- give out their ids again, and acknowledging a lost entry would hit the new one.
local function raise_id(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then return no_group(keys[1]) end
  if less(named(redis.call('XINFO', 'STREAM', keys[1]))['last-generated-id'], args[1]) then
    redis.call('XSETID', keys[1], args[1])
  end
  return 1
end

-- keys: fence, cursor, tasks, ledger, events    args: token, expected cursor, next cursor, (uid, payload)*
-- Returns {fence held, cursor after the call}. Compare-and-set: another expected cursor changes nothing.
local function issue(keys, args)
  local cursor = tonumber(redis.call('GET', keys[2]) or '0')
  if redis.call('GET', keys[1]) ~= args[1] then return {0, cursor} end
  if cursor ~= tonumber(args[2]) then return {1, cursor} end
  redis.call('SET', keys[2], args[3])
  local uids = {}
  for i = 4, #args, 2 do
    redis.call('XADD', keys[3], '*', 'uid', args[i], 'm', args[i + 1])
    uids[#uids + 1] = args[i]
  end
  if #uids > 0 then
    redis.call('HINCRBY', keys[4], 'issued:policy', #uids)
    event(keys[5], 'issued', {'kind', 'policy', 'uids', table.concat(uids, ' ')})
  end
  return {1, tonumber(args[3])}
end

-- keys: in, out, ledger, events    args: group, issued kind or '', (id, n, (uid, payload) * n)*
-- Acks each entry and appends its products only where the ack counted. Returns 1 or 0 per entry.
local function transfer(keys, args)
  local i = 3
  while i <= #args do
    local err = bad_id(args[i])
    if err then return err end
    i = i + 2 + 2 * tonumber(args[i + 1])
  end
  local applied, uids = {}, {}
  i = 3
  while i <= #args do
    local id, products = args[i], tonumber(args[i + 1])
    local acked = redis.call('XACK', keys[1], args[1], id)
    applied[#applied + 1] = acked
    for p = 0, products - 1 do
      local at = i + 2 + 2 * p
      if acked == 1 then
        redis.call('XADD', keys[2], '*', 'uid', args[at], 'm', args[at + 1])
        uids[#uids + 1] = args[at]
      end
    end
    i = i + 2 + 2 * products
  end
  if args[2] ~= '' and #uids > 0 then
    redis.call('HINCRBY', keys[3], 'issued:' .. args[2], #uids)
    event(keys[4], 'issued', {'kind', args[2], 'uids', table.concat(uids, ' ')})
  end
  return applied
end

-- keys: fence, ledger, events, stream+    args: token, group, policy version, (stream index, id, uid, outcome, kind)*
-- The learner's acknowledgement, after its checkpoint is durable. Returns -1 when fenced, else the number acked.
-- An empty uid acks an entry that counts nowhere (a duplicate of a uid that already ended).
local function settle(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return -1 end
  for i = 4, #args, 5 do
    local err = bad_id(args[i + 1])
    if err then return err end
  end
  local acked, ended = 0, {}
  for i = 4, #args, 5 do
    if redis.call('XACK', keys[3 + tonumber(args[i])], args[2], args[i + 1]) == 1 then
      acked = acked + 1
      if args[i + 2] ~= '' then
        local name = args[i + 3] .. ':' .. args[i + 4]
        ended[name] = ended[name] or {}
        table.insert(ended[name], args[i + 2])
      end
    end
  end
  for name, uids in pairs(ended) do
    redis.call('HINCRBY', keys[2], name, #uids)
    event(keys[3], 'ended', {'outcome', name, 'policy_version', args[3], 'uids', table.concat(uids, ' ')})
  end
  return acked
end

-- keys: in, dead, ledger, events    args: group, id, uid, kind or '' (counts nowhere), reason, deliveries, payload
local function bury(keys, args)
  if redis.call('XACK', keys[1], args[1], args[2]) == 0 then return 0 end
  redis.call('XADD', keys[2], '*', 'stream', keys[1], 'group', args[1], 'uid', args[3], 'kind', args[4],
    'reason', args[5], 'deliveries', args[6], 'm', args[7])
  if args[4] ~= '' then
    redis.call('HINCRBY', keys[3], 'dead:' .. args[4], 1)
    event(keys[4], 'ended', {'outcome', 'dead:' .. args[4], 'reason', args[5], 'uids', args[3]})
  end
  return 1
end

-- keys: dead, its stream, ledger, events    args: id of the letter
-- Put a dead letter back where it came from. XDEL answers 1 to one caller only, as XACK does.
local function revive(keys, args)
  local letter = redis.call('XRANGE', keys[1], args[1], args[1])[1]
  if not letter then return 0 end
  local fields = named(letter[2])
  if fields['stream'] ~= keys[2] then return redis.error_reply('ERR letter ' .. args[1] .. ' is of another stream') end
  redis.call('XDEL', keys[1], args[1])
  redis.call('XADD', keys[2], '*', 'uid', fields['uid'], 'm', fields['m'])
  if fields['kind'] ~= '' then
    redis.call('HINCRBY', keys[3], 'dead:' .. fields['kind'], -1)
    event(keys[4], 'revived', {'kind', fields['kind'], 'uids', fields['uid']})
  end
  return 1
end

-- keys: dead    args: id*    The uids stay ended: only what is left of them is forgotten.
local function drop(keys, args)
  return redis.call('XDEL', keys[1], unpack(args))
end

local function owned(stream, group, consumer, id)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)
  return #pending == 1 and pending[1][2] == consumer
end

-- keys: stream    args: group, consumer, idle ms to set, id*    Returns the ids still owned by the consumer.
-- Idle 0 renews a lease; a huge one hands the entry back, claimable at once. A zombie's call does nothing.
local function set_idle(keys, args)
  local kept = {}
  for i = 4, #args do
    if owned(keys[1], args[1], args[2], args[i]) then
      redis.call('XCLAIM', keys[1], args[1], args[2], 0, args[i], 'IDLE', args[3], 'JUSTID')
      kept[#kept + 1] = args[i]
    end
  end
  return kept
end

-- keys: stream    args: group, consumer, idle ms to set, (id, deliveries to set)*    As set_idle, and also says how often
-- an entry was delivered: a delivery that nobody began must not count as a try.
local function recount(keys, args)
  local kept = {}
  for i = 4, #args, 2 do
    if owned(keys[1], args[1], args[2], args[i]) then
      redis.call('XCLAIM', keys[1], args[1], args[2], 0, args[i], 'IDLE', args[3], 'RETRYCOUNT', args[i + 1], 'JUSTID')
      kept[#kept + 1] = args[i]
    end
  end
  return kept
end

-- keys: stream    args: group, consumer
-- Moves pending entries of every other consumer to this one (older epochs of the learner); at most 200 a call.
local function adopt(keys, args)
  if #groups_of(keys[1]) == 0 then return no_group(keys[1]) end
  local moved = 0
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', keys[1], args[1])) do
    local consumer = named(info)
    local name, pending = consumer['name'], consumer['pending']
    if name ~= args[2] then
      if pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', keys[1], args[1], name)  -- nothing pending, so nothing is discarded
      else
        for _, entry in ipairs(redis.call('XPENDING', keys[1], args[1], '-', '+', 200 - moved, name)) do
          redis.call('XCLAIM', keys[1], args[1], args[2], 0, entry[1], 'JUSTID')
          moved = moved + 1
        end
        if moved >= 200 then return moved end
      end
    end
  end
  return moved
end

-- keys: stream    args: number of groups the stream must have, most entries to delete (at least 100)
-- Deletes only what every group has both read and acknowledged.
local function trim(keys, args)
  local groups = groups_of(keys[1])
  if #groups < tonumber(args[1]) then return no_group(keys[1]) end
  local low
  for _, group in ipairs(groups) do
    local first = redis.call('XPENDING', keys[1], group['name'])[2] or successor(group['last-delivered-id'])
    if not low or less(first, low) then low = first end
  end
  -- Whole nodes first, in a slice; what is left below `low` is then a part of one node, of at most 100 entries.
  local deleted = redis.call('XTRIM', keys[1], 'MINID', '~', low, 'LIMIT', args[2])
  if deleted > 0 then return deleted end
  return redis.call('XTRIM', keys[1], 'MINID', low)
end

-- Entries after `last`, counted one by one: slow where they are large.
local function count_after(stream, last)
  local count = 0
  while true do
    local slice = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 100)
    count = count + #slice
    if #slice < 100 then return count end
    last = slice[#slice][1]
  end
end

-- keys: stream    args: group
-- {pending, undelivered, idle ms of the oldest pending entry}. The server's own lag is exact here, because trim never
-- deletes an entry that a group has not read; after a foreign XDEL it is nil, and the entries are counted.
local function backlog(keys, args)
  local group
  for _, info in ipairs(groups_of(keys[1])) do
    if info['name'] == args[1] then group = info end
  end
  if not group then return no_group(keys[1]) end
  local undelivered = group['lag'] or count_after(keys[1], group['last-delivered-id'])
  local oldest = redis.call('XPENDING', keys[1], args[1], '-', '+', 1)
  return {group['pending'], undelivered, #oldest == 1 and oldest[1][3] or 0}
end

-- keys: stream    args: group, after, count
-- What the group has not acknowledged, after a position: {last position looked at or '', uid*}. Payloads stay here.
local function unacked(keys, args)
  local group
  for _, info in ipairs(groups_of(keys[1])) do
    if info['name'] == args[1] then group = info end
  end
  if not group then return no_group(keys[1]) end
  local rows = redis.call('XRANGE', keys[1], '(' .. args[2], '+', 'COUNT', args[3])
  local found = {#rows > 0 and rows[#rows][1] or ''}
  for _, row in ipairs(rows) do
    local delivered = not less(group['last-delivered-id'], row[1])
    if not delivered or #redis.call('XPENDING', keys[1], args[1], row[1], row[1], 1) == 1 then
      found[#found + 1] = named(row[2])['uid'] or ''
    end
  end
  return found
end

-- keys: fence, events    args: token, id    Forget events up to an id, which are on disk now.
local function forget_events(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return -1 end
  return redis.call('XTRIM', keys[2], 'MINID', successor(args[2]))
end

-- keys: clock, stream*    args: group, tolerance ms
-- Leases are measured by the server's clock. Where that was set back, what a dead owner holds would be leased for as long:
-- then every lease begins anew. Returns how many did, or -1 when the clock is as it should be.
local function mend_leases(keys, args)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local latest = tonumber(redis.call('GET', keys[1]) or '0')
  redis.call('SET', keys[1], string.format('%.0f', now))
  if now >= latest - tonumber(args[2]) then return -1 end
  local begun = 0
  for i = 2, #keys do
    local after = '-'
    while true do
      local rows = redis.call('XPENDING', keys[i], args[1], after, '+', 200)
      for _, row in ipairs(rows) do
        redis.call('XCLAIM', keys[i], args[1], row[2], 0, row[1], 'IDLE', 0, 'JUSTID')
        begun = begun + 1
      end
      if #rows < 200 then break end
      after = '(' .. rows[#rows][1]
    end
  end
  return begun
end

-- keys: weights or control    args: message, messages to remember
-- Of weights only the newest matter, and commands are journaled by the learner: these streams may be cut.
local function publish(keys, args)
  return redis.call('XADD', keys[1], 'MAXLEN', '~', args[2], '*', 'm', args[1])
end

-- keys: progress    args: (field, value)*
local function report(keys, args)
  return redis.call('HSET', keys[1], unpack(args))
end

-- keys: fence, progress, events    args: token, what holds, nonce of the last change, (field, value)* of its event
-- Returns -1 when fenced. A change that was told last is not written to the event log again.
local function steered(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then return -1 end
  if redis.call('HGET', keys[2], 'steered') ~= args[3] then event(keys[3], 'steered', {unpack(args, 4)}) end
  return redis.call('HSET', keys[2], 'steering', args[2], 'steered', args[3])
end

-- keys: members, heartbeat of the member    args: member, what it says, ms to live; 0 of a farewell, which stays
local function heartbeat(keys, args)
  redis.call('SADD', keys[1], args[1])
  if tonumber(args[3]) == 0 then return redis.call('SET', keys[2], args[2]) end
  return redis.call('SET', keys[2], args[2], 'PX', args[3])
end

-- A full server refuses the producers; everything that drains it, or says how things stand, runs above maxmemory.
local function register(name, callback, flags)
  redis.register_function{function_name = 'spark_' .. name, callback = callback, flags = flags}
end

register('begin', begin, {'allow-oom'})
register('rebuild', rebuild, {'allow-oom'})
register('park', park, {})
register('raise_id', raise_id, {'allow-oom'})
register('issue', issue, {})
register('transfer', transfer, {})
register('discard', transfer, {'allow-oom'})
register('settle', settle, {'allow-oom'})
register('bury', bury, {'allow-oom'})
register('revive', revive, {})
register('drop', drop, {'allow-oom'})
register('forget_events', forget_events, {'allow-oom'})
register('unacked', unacked, {'no-writes'})
register('set_idle', set_idle, {'allow-oom'})
register('recount', recount, {'allow-oom'})
register('mend_leases', mend_leases, {'allow-oom'})
register('adopt', adopt, {'allow-oom'})
register('trim', trim, {'allow-oom'})
register('take_fence', take_fence, {'allow-oom'})
register('publish', publish, {'allow-oom'})
register('report', report, {'allow-oom'})
register('steered', steered, {'allow-oom'})
register('heartbeat', heartbeat, {'allow-oom'})
register('backlog', backlog, {'no-writes'})
