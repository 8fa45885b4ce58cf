-- What the dispatch scripts share. KEYS[1] is "<prefix>:{<vendor>}": all keys of a vendor begin with it, so they are in one hash slot.
-- ARGV[1] is the time (ms since 1970, by the caller's clock), ARGV[2] the number of the vendor's streams. Every script says at its top what the
-- other arguments are and what it gives.
--
-- Streams have numbers: 0, 1, 2 are for calls of priority high, normal, low; 3, 4, 5 for polls. `streams` is how many the vendor has, 3 or 6.
-- Each stream has:
--   :<stream>:jobs     the stream itself, with the first of the waiting jobs; an entry stays until its job is settled
--   :<stream>:due      tenants with more due jobs in MongoDB, in the order of their turns
--   :<stream>:asleep   tenants with jobs that are due later, and when (ms)
--   :<stream>:reading  tenants whose jobs a process is reading from MongoDB, and when that times out (ms)
--   :<stream>:resting  tenants over their own limit, and until when (ms)
-- The vendor has:
--   :index   where each id is: '-<stream> <entry>' if it is free, '+<stream> <entry> <worker>' if it is leased
--   :state   epoch (the name of this index), run (the run of Redis in which it began), is_open (until it is 1, nothing is added or claimed),
--            looks (how often lapsed leases were looked for), sweep_at, turn, spent, claimed
--   :counts  how many jobs are waiting, open and live, and the bytes that the live ones count with
local base = KEYS[1]
local GROUP, FREE = 'workers', 'free'
local index, state, counts = base .. ':index', base .. ':state', base .. ':counts'

-- A key of a stream (see above).
local function key_of(stream, what)
  return base .. ':' .. stream .. ':' .. what
end

-- All digits of a whole number; tostring prints only 14 of them.
local function number(text)
  return string.format('%.0f', text)
end

-- How many entries of a stream can be claimed, how many of those were given back, and how many are leased.
local function waiting(stream)
  local length = redis.call('XLEN', key_of(stream, 'jobs'))
  if length == 0 then return 0, 0, 0 end
  local pending = redis.call('XPENDING', key_of(stream, 'jobs'), GROUP)
  local free = 0
  if pending[1] > 0 then
    for _, consumer in ipairs(pending[4]) do
      if consumer[1] == FREE then free = tonumber(consumer[2]) end
    end
  end
  return length - pending[1] + free, free, pending[1] - free
end

-- The same for all streams of the vendor, by stream. Raises NOGROUP if one is missing.
local function waiting_in_all(streams)
  local keys, here, free, leased = {}, {}, {}, {}
  for stream = 0, streams - 1 do keys[#keys + 1] = key_of(stream, 'jobs') end
  if redis.call('EXISTS', unpack(keys)) < streams then
    for _, key in ipairs(keys) do redis.call('XPENDING', key, GROUP) end
  end
  for stream = 0, streams - 1 do here[stream], free[stream], leased[stream] = waiting(stream) end
  return here, free, leased
end

-- Whether any tenant has a turn, sleeps, is being read or rests in these streams. As a rule none does: asking once for all saves commands.
local function has_tenants(first, last)
  local keys = {}
  for stream = first, last do
    for _, what in ipairs({'due', 'asleep', 'reading', 'resting'}) do keys[#keys + 1] = key_of(stream, what) end
  end
  return redis.call('EXISTS', unpack(keys)) > 0
end

-- When the next call and the next poll are due (ms; -1: none). `here`: how many entries of each stream can be claimed; `some_wait`: what
-- `has_tenants` said of all streams.
local function next_due(streams, now, here, some_wait)
  local next_at = {-1, -1}
  for stream = 0, streams - 1 do
    local kind, soonest = stream < 3 and 1 or 2, -1
    if here[stream] > 0 or some_wait and redis.call('ZCARD', key_of(stream, 'due')) > 0 then
      soonest = now
    elseif some_wait then
      for _, what in ipairs({'asleep', 'reading'}) do
        local first = redis.call('ZRANGE', key_of(stream, what), 0, 0, 'WITHSCORES')
        local at = tonumber(first[2])
        if at and (soonest == -1 or at < soonest) then soonest = at end
      end
    end
    if soonest ~= -1 and (next_at[kind] == -1 or soonest < next_at[kind]) then next_at[kind] = soonest end
  end
  return number(next_at[1]), number(next_at[2])
end

-- Whether a stream is to be refilled. A refill reads the entries that are still there once more, so it is better late. But not too late: a claim
-- that finds a stream empty takes more from another one than its share.
local FEW = 512
local function is_low(left, depth)
  return left < math.min(depth / 2, FEW)
end

-- The epoch, and whether the index is open; nothing if the index was lost. If only a stream is missing, its use raises NOGROUP.
local function epoch()
  local name, is_open = unpack(redis.call('HMGET', state, 'epoch', 'is_open'))
  if name and is_open then return name, is_open == '1' end
end

-- Changes when Redis restarts and when a replica takes over.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- The same for scripts that lease entries: in another run of Redis the index counts as lost, because it may be too old to know the last claims.
-- Other scripts may write into such an index: that is deleted when the new one begins. Also gives other fields of `state` (false: not there).
local function epoch_of_this_run(...)
  local found = redis.call('HMGET', state, 'run', 'epoch', 'is_open', ...)
  if found[1] ~= run_id() or not (found[2] and found[3]) then return nil end
  return found[2], found[3] == '1', unpack(found, 4)
end

-- For scripts that free memory or need very little: they also run when Redis is full, because that is checked only before the first write.
local function even_when_full()
  redis.call('DEL', base .. ':none')
end

-- Publishes on a channel of the service ('bells' or 'ended').
local function publish(channel, body)
  redis.call('PUBLISH', string.match(base, '^(.*):{') .. ':' .. channel, body)
end

-- Wakes the vendor's home. With MAYBE it looks whether anything is due; otherwise something is, and it claims at once.
local MAYBE = '?'
local function ring(how)
  publish('bells', (how or '') .. string.match(base, '{(.*)}$'))
end

local have_turns = {} -- lanes that have taken their turn in this call

-- Gives a tenant that has due jobs in MongoDB a turn, unless it has one; says whether it was new.
local function take_turn(stream, tenant)
  local lane = stream .. ' ' .. tenant
  if have_turns[lane] then return false end
  have_turns[lane] = true
  local turn = redis.call('HINCRBY', state, 'turn', 1)
  return redis.call('ZADD', key_of(stream, 'due'), 'NX', turn, tenant) == 1
end

-- Notes that a tenant's next job is due then, unless an earlier time is noted.
local function sleep(stream, tenant, until_ms)
  redis.call('ZADD', key_of(stream, 'asleep'), 'LT', until_ms, tenant)
end

-- Gives turns to tenants whose jobs have become due, and to those whose reading has timed out.
local function wake(stream, now)
  for _, what in ipairs({'asleep', 'reading'}) do
    local up = redis.call('ZRANGE', key_of(stream, what), '-inf', number(now), 'BYSCORE', 'LIMIT', 0, 1000)
    for _, tenant in ipairs(up) do
      redis.call('ZREM', key_of(stream, what), tenant)
      take_turn(stream, tenant)
    end
  end
end

-- Until when a tenant rests, if it does.
local function rests(stream, tenant, now)
  local until_ms = tonumber(redis.call('ZSCORE', key_of(stream, 'resting'), tenant) or 0)
  if until_ms > now then return until_ms end
  if until_ms > 0 then redis.call('ZREM', key_of(stream, 'resting'), tenant) end
  return nil
end

-- The values of `index`: an entry that is free, and one that a worker has leased.
local function free_at(stream, entry)
  return '-' .. stream .. ' ' .. entry
end

local function leased_at(stream, entry, worker)
  return '+' .. stream .. ' ' .. entry .. ' ' .. worker
end

-- How long an entry has been leased is recorded as its delivery time, which is no time here but the number of the last look for lapsed leases.
-- A clock can be set back; the number of looks only grows. One look is a second, which leaves room for the time that a script takes.
local LOOK = 1000

-- Leases entries of a stream to a worker, or renews its leases. `looks`: the number of the last look, if it is known.
local function lease(stream, entries, worker, looks)
  local claim = {'XCLAIM', key_of(stream, 'jobs'), GROUP, worker, '0'}
  for _, entry in ipairs(entries) do claim[#claim + 1] = entry end
  for _, word in ipairs({'TIME', number((looks or redis.call('HGET', state, 'looks')) * LOOK), 'JUSTID'}) do claim[#claim + 1] = word end
  redis.call(unpack(claim))
end

-- The stream and the entry in a value of `index`.
local function parts(where)
  return string.match(where, '^.(%d) (%S+)')
end

-- The stream and the entry of an id.
local function place(id)
  return parts(redis.call('HGET', index, id) or '')
end

local is_whole -- whether there are as many entries in the streams as ids in the index; checked once, before anything is added

-- Whether the entry of an id exists: somebody else may have deleted it. If no entry is missing, it is not looked up.
local function is_there(where)
  if is_whole == nil then
    local entries = 0
    for stream = 0, tonumber(ARGV[2]) - 1 do entries = entries + redis.call('XLEN', key_of(stream, 'jobs')) end
    is_whole = entries == redis.call('HLEN', index)
  end
  if is_whole then return true end
  local stream, name = parts(where)
  return stream and #redis.call('XRANGE', key_of(stream, 'jobs'), name, name) == 1
end

-- Adds ids to a stream, unless they are in one already; returns the new entries.
local function add(stream, ids)
  local entries = {}
  -- A thousand at a time: Lua's stack is bounded.
  for from = 1, #ids, 1000 do
    local some, new, notes = { unpack(ids, from, math.min(from + 999, #ids)) }, {}, {}
    for i, where in ipairs(redis.call('HMGET', index, unpack(some))) do
      if not (where and is_there(where)) then new[#new + 1] = some[i] end
    end
    local added = {}
    for _, id in ipairs(new) do
      if not added[id] then
        local entry = redis.call('XADD', key_of(stream, 'jobs'), '*', 'id', id)
        added[id], entries[#entries + 1] = true, entry
        notes[#notes + 1], notes[#notes + 2] = id, free_at(stream, entry)
      end
    end
    if #notes > 0 then redis.call('HSET', index, unpack(notes)) end
  end
  return entries
end

-- Removes entries of a stream, { entry, id } each, and gives how many. They are acknowledged and deleted together, or their memory would never
-- be freed.
local function remove(stream, entries)
  for from = 1, #entries, 1000 do
    local names, ids = {}, {}
    for i = from, math.min(from + 999, #entries) do names[#names + 1], ids[#ids + 1] = unpack(entries[i]) end
    redis.call('XACK', key_of(stream, 'jobs'), GROUP, unpack(names))
    redis.call('XDEL', key_of(stream, 'jobs'), unpack(names))
    redis.call('HDEL', index, unpack(ids))
  end
  return #entries
end

-- Those of some entries of a stream, { entry, id } each, that a worker has leased.
local function leased_by(stream, entries, worker)
  local leased = {}
  for from = 1, #entries, 1000 do
    local ids = {}
    for i = from, math.min(from + 999, #entries) do ids[#ids + 1] = entries[i][2] end
    for i, where in ipairs(redis.call('HMGET', index, unpack(ids))) do
      local entry = entries[from + i - 1]
      if where == leased_at(stream, entry[1], worker) then leased[#leased + 1] = entry end
    end
  end
  return leased
end

-- The entries with an id in them. Others were added by somebody else: they are logged and removed, and the rest goes on.
local function well_formed(stream, entries)
  local good = {}
  for _, entry in ipairs(entries) do
    -- Before Redis 7, claiming an entry that somebody else has deleted gives false.
    if not entry then
    elseif entry[2] and entry[2][1] == 'id' and #entry[2] == 2 and #entry[2][2] == 16 then
      good[#good + 1] = entry
    else
      redis.log(redis.LOG_WARNING, 'fetchgate: an entry of ' .. key_of(stream, 'jobs') .. ' is not ours: ' .. entry[1])
      redis.call('XACK', key_of(stream, 'jobs'), GROUP, entry[1])
      redis.call('XDEL', key_of(stream, 'jobs'), entry[1])
    end
  end
  return good
end

local free_lanes = {} -- lanes that were checked in this call: whether a job may go straight into the stream

-- Queues a job. It goes straight into the stream if there is room and its tenant has no backlog; otherwise its tenant gets a turn, and the job is
-- read from MongoDB when that comes. Returns whether the caller is to add it to the stream, and whether to wake dispatchers.
local function enqueue(stream, tenant, due_at, now, is_open, room)
  if due_at > now then
    local first = redis.call('ZRANGE', key_of(stream, 'asleep'), 0, 0, 'WITHSCORES')
    sleep(stream, tenant, number(due_at))
    return false, not first[2] or tonumber(first[2]) > due_at
  end
  local lane = stream .. ' ' .. tenant
  if free_lanes[lane] == nil then
    free_lanes[lane] = not has_tenants(tonumber(stream), tonumber(stream)) or not (rests(stream, tenant, now)
      or redis.call('ZSCORE', key_of(stream, 'due'), tenant) or redis.call('ZSCORE', key_of(stream, 'reading'), tenant))
  end
  if not is_open or room <= 0 or not free_lanes[lane] then
    free_lanes[lane] = false
    return false, take_turn(stream, tenant)
  end
  return true, true
end

-- Changes the counts of the vendor by what ARGV has from `first` on (waiting, open, live, bytes). `settled_at`: an outcome was stored then.
local function count(first, settled_at)
  if not settled_at and table.concat(ARGV, '', first, first + 3) == '0000' then return end
  local names, fields = {'waiting', 'open', 'live', 'bytes'}, {}
  local before = redis.call('HMGET', counts, unpack(names))
  for i, name in ipairs(names) do
    local by = ARGV[first + i - 1]
    if by ~= '0' then
      fields[#fields + 1] = name
      fields[#fields + 1] = number((before[i] or 0) + by)
    end
  end
  if settled_at then fields[#fields + 1], fields[#fields + 2] = 'settled_at', settled_at end
  redis.call('HSET', counts, unpack(fields))
end
