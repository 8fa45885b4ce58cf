-- Counts what waits in each lane anew, piece by piece, while others go on: one process does it, and has to be heard of.
-- ARGV: now, lines, a name for this count, step (begin, add, done), lanes (JSON): those that were found in this step.
-- Gives 0 when somebody else counts, or the index was lost meanwhile.
even_when_full()
local now, name, step = tonumber(ARGV[1]), ARGV[3], ARGV[4]
local PATIENCE = 30000
if not epoch() then return 0 end
local by, heard_at = unpack(redis.call('HMGET', state, 'counting', 'counting_at'))
if step == 'begin' then
  if by and tonumber(heard_at) > now - PATIENCE and tonumber(heard_at) <= now then return 0 end
  redis.call('DEL', base .. ':lanes')
  redis.call('HDEL', state, 'counted', 'width')
elseif by ~= name then
  return 0
end
count_lanes(cjson.decode(ARGV[5]))
if step == 'done' then
  redis.call('HDEL', state, 'counting', 'counting_at')
  redis.call('HSET', state, 'counted', '1')
else
  redis.call('HSET', state, 'counting', name, 'counting_at', number(now))
end
return 1
