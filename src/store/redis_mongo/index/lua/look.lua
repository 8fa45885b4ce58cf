-- Whether a vendor has something to do, and when.
-- ARGV: now, streams, sweep_every (ms), epoch (of an index that is to be opened, because the caller has known it for long enough).
-- Gives: epoch, is_open (1), sweep (1: the caller is to sweep for jobs that are missing here), calls leased by all workers, calls ever
-- claimed, when the next call and the next poll are due (ms; -1: none, or not known because the index is not open).
even_when_full()
local now, streams = tonumber(ARGV[1]), tonumber(ARGV[2])
local name, is_open = epoch_of_this_run()
if not name then return {''} end
if not is_open and name == ARGV[4] then
  redis.call('HSET', state, 'is_open', '1')
  is_open = true
end
local sweep = 0
local sweep_at = tonumber(redis.call('HGET', state, 'sweep_at') or 0)
local every = tonumber(ARGV[3])
-- A time further away was set by a wrong clock.
if is_open and (sweep_at <= now or sweep_at > now + 2 * every) then
  redis.call('HSET', state, 'sweep_at', number(now + every))
  sweep = 1
end
local next_at, calls_leased = {-1, -1}, 0
for stream = 0, streams - 1 do
  local kind, soonest = stream < 3 and 1 or 2, -1
  local here, _, leased = waiting(stream)
  if stream < 3 then calls_leased = calls_leased + leased end
  if here > 0 or redis.call('ZCARD', key_of(stream, 'due')) > 0 then
    soonest = now
  else
    for _, what in ipairs({'asleep', 'reading'}) do
      local first = redis.call('ZRANGE', key_of(stream, what), 0, 0, 'WITHSCORES')
      local at = tonumber(first[2])
      if at and (soonest == -1 or at < soonest) then soonest = at end
    end
  end
  if soonest ~= -1 and (next_at[kind] == -1 or soonest < next_at[kind]) then next_at[kind] = soonest end
end
return {name, is_open and '1' or '0', tostring(sweep), tostring(calls_leased), redis.call('HGET', state, 'claimed') or '0',
  number(next_at[1]), number(next_at[2])}
