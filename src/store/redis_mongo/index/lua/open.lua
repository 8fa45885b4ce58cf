-- A new index, empty, where there was none, only a part of one, or one of another run of Redis. It opens after a while (see look.lua), in which live workers register their leases again.
-- ARGV: now, lines, a name for it, at once (1: no job is live, so none can be leased. It opens now).
local lines = tonumber(ARGV[2])
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none' and kind ~= 'stream'
end
local whole = is(state, 'hash') and is(index, 'hash') and is(counts, 'hash') and epoch_of_this_run()
for line = 0, lines - 1 do
  whole = whole and is(of(line, 'jobs'), 'stream') and #redis.call('XINFO', 'GROUPS', of(line, 'jobs')) > 0
  for _, what in ipairs({'due', 'asleep', 'reading', 'resting'}) do whole = whole and is(of(line, what), 'zset') end
end
if whole then return 0 end
if not is(counts, 'hash') then redis.call('DEL', counts) end
redis.call('DEL', index, state)
for line = 0, 5 do
  for _, what in ipairs({'jobs', 'due', 'asleep', 'reading', 'resting'}) do redis.call('DEL', of(line, what)) end
end
for line = 0, lines - 1 do
  -- From the first entry on, whatever has been added meanwhile.
  redis.call('XGROUP', 'CREATE', of(line, 'jobs'), GROUP, '0', 'MKSTREAM')
end
redis.call('HSET', state, 'epoch', ARGV[3], 'run', run_id(), 'is_open', ARGV[4], 'looks', '1', 'sweep_at', '0')
return 1
