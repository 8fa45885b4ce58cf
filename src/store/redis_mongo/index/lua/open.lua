-- A new index, empty, where there was none, only a part of one, or one of another run of Redis. It opens after a while (see look.lua), in which
-- live workers register their leases again.
-- ARGV: now, streams, a name for it, at once (1: no job is live, so none can be leased. It opens now).
-- Gives 1; 0 if the index is whole: it stays as it is.
local streams = tonumber(ARGV[2])
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none' and kind ~= 'stream'
end
local whole = is(state, 'hash') and is(index, 'hash') and is(counts, 'hash') and epoch_of_this_run()
local some_wait = whole and has_tenants(0, streams - 1)
for stream = 0, streams - 1 do
  whole = whole and is(key_of(stream, 'jobs'), 'stream') and #redis.call('XINFO', 'GROUPS', key_of(stream, 'jobs')) > 0
  for _, what in ipairs(some_wait and {'due', 'asleep', 'reading', 'resting'} or {}) do whole = whole and is(key_of(stream, what), 'zset') end
end
if whole then return 0 end
if not is(counts, 'hash') then redis.call('DEL', counts) end
redis.call('DEL', index, state)
for stream = 0, 5 do
  for _, what in ipairs({'jobs', 'due', 'asleep', 'reading', 'resting'}) do redis.call('DEL', key_of(stream, what)) end
end
for stream = 0, streams - 1 do
  -- From the first entry on, whatever has been added meanwhile.
  redis.call('XGROUP', 'CREATE', key_of(stream, 'jobs'), GROUP, '0', 'MKSTREAM')
end
redis.call('HSET', state, 'epoch', ARGV[3], 'run', run_id(), 'is_open', ARGV[4], 'looks', '1', 'sweep_at', '0')
return 1
